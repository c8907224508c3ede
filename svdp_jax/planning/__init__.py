"""What a run would take on chips that are not there: compiled programs, FLOPs, collectives, rates."""
