"""The networks that take the noise out; one file each."""
