"""Methods that remember beside the cache, or act while a prompt is read: events, fine-tuning, sparse reading."""
