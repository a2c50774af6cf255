"""That a bundle gives what the whole model gave, wherever it is run."""
