"""What the floor above needs from the world: small Protocols and the values they exchange."""
