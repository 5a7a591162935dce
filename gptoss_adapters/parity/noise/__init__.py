"""What rounding may do: null implementations made of the reference."""
