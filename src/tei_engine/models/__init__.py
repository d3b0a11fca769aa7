"""A model as a whole: where its files are, what they say, and the loaded thing that turns ids into vectors."""
