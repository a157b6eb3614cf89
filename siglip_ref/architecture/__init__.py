"""What a model is, as data: its sizes, its conventions, the names and shapes of its parameters, inputs that fit."""
