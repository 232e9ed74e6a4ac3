"""The mathematics of diffusion training; imports no other part of st at run time but options and errors."""
