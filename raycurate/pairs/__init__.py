"""Questions and their documents: from records, titles or judgements to splits, hard negatives, one positive a row."""
