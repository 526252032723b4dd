"""What every service needs; knows nothing of models, images or HTTP."""
