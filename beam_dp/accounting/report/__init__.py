"""A ledger for people: as plain text, as a page with pictures, entry by entry in words, and the sum of several runs."""
