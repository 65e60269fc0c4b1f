"""The sections of the report, one module each: `section(context)` makes it, or returns None."""
