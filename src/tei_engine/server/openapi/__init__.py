"""What the HTTP listener serves, as an OpenAPI document and as a page for people. Plain data, built once."""
