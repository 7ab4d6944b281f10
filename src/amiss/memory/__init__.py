"""Memory banks of normal patch embeddings: choosing, storing and searching them."""

from amiss.memory.coreset import Coreset, greedy_coreset, k_center_greedy, random_coreset

__all__ = ["Coreset", "greedy_coreset", "k_center_greedy", "random_coreset"]
