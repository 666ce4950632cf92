"""What every room may use: the error that users read, atomic file writes, stable hashes, the device of this machine."""
