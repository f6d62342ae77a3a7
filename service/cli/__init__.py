"""The `vitrine` command: `up` and `doctor` for the machine, the rest for people who use the service."""
