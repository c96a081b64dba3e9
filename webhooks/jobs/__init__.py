"""What runs beside the main path, by the clock."""
