"""CPU ops in C, where the extension was built: weights packed once, no gather, no padding, rows bitwise independent."""
