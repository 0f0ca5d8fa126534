"""The torch model and its weights: binary layers, the mask of a width (Eq. 4-6), training."""
