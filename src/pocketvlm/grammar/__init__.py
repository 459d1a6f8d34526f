"""JSON schemas, regular expressions and grammars → the tokens that may come next."""
