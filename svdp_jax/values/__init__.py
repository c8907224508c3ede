"""What a value may be, and typed trees of them out of flags and JSON; which values cannot stand together."""
