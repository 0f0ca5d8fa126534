"""How fast and how accurate a file is on a device; measuring a device for its profile."""
