"""The API on port 8080: parse a request, call control, show the answer."""
