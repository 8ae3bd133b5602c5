"""What a model is worth: through the whole product, in millimetres, beside what people reach."""
