"""What methods share while they learn: images, held-out scores, interrupted work, banks."""
