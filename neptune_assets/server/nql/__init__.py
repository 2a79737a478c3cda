"""Neptune's query language: a grammar, a syntax tree, and conditions in SQL with every value bound."""
