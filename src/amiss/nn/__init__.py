"""Networks and tensor operations that the methods are composed of."""
