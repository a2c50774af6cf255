"""What a tensor may become on its way: encodings, what each costs, which are allowed."""
