"""How fast a file is on a device, how often it is right, and the profile of a device."""
