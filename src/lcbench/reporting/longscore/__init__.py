"""LongScore in reports: two rankings side by side, scores over length, and what each loss is made of."""
