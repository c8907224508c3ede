"""What a value may be, and typed trees of them out of flags and JSON. No field of any config is here."""
