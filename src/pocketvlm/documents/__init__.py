"""Files of documents → a row of each, or of each page, kept to a schema."""
