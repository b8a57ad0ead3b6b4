// Matrix products with epilogues.
