"""What the user asked for, as plain frozen data: no torch, no I/O beyond reading one YAML file."""
