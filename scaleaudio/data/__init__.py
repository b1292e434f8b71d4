"""From audio files to batches: shards and their index, the order of reading, and the stream."""
