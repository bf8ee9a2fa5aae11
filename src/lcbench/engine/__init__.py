"""Running a plan: one prefill a prompt, a fork a method, greedy decoding, a record a sample."""
