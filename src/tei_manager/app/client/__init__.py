"""The commands that talk to a running manager over REST. Standard library only: they must start fast."""
