"""What the network is trained to minimize, on normalized inverse depth."""
