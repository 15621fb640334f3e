"""A whole video of Wan 2.1 1.3B with its UMT5-XXL, from 14 GB of files in 4 GB of memory."""
