"""How `tale`, the built-in model, is made: the text generator, the tokenizer, the training and the evaluation."""
