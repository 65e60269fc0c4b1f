"""From question/answer pairs, titles or judged queries to training data: splits, hard negatives, one positive a row."""
