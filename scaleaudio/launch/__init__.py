"""The only room that knows Ray and DeepSpeed."""
