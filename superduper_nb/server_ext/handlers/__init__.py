"""HTTP handlers, one module a noun."""
