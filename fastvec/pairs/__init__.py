"""Compares all rows of finished outputs with each other: near-duplicates and nearest neighbors, exactly.

- `dedup` is `fastvec.dedup`: it finds the pairs above a threshold and writes the groups that they join;
  `against` finds the rows that are near another set of rows.
- `neighbors` is `fastvec.neighbors`: it writes the k nearest rows of each row.
- `unit_blocks` reads vectors at length 1; `products` compares two blocks of them, on the CPU or a GPU.
- `components` joins pairs to groups; `nearest` keeps the k best of each row.
- `tables` names rows by the columns of their outputs; `progress` counts the pairs compared.
"""
