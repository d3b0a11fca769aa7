"""Pure decisions: values in, a verdict with its reason out. Time and chance are arguments."""
