"""Documents in: text, JSON Lines and Parquet files."""
