"""The theory of notebooks 02, 06 and 07 in float64, one file a chain: formula, trial on random cases, counterexample.

tally, draws           words on tables of cases; random networks and rows
duality                P1 to P4, P6, P7: moving pixels is moving the first layer; shared weights; what penalties punish
path_norm, stability   P5, P9, P11, P12: two layers of ReLU and where SGD ends; P8, P10: where SGD can stay
certificates           P13, P14, P18: the angle of a map, what it certifies about similarities, averaged maps
traps                  P15 to P17: what the explained number does; P19, P26: what a measure does not see
entropy, kernels       P20, P22 to P25: softmax rows; P21, P27 to P32: rows that need not sum to one
"""
