"""The theory of notebooks 02, 06 and 07 in float64, one file a chain: formula, trial on random cases, counterexample.

tally, draws               verdicts on tables of cases; random networks and rows
duality, sharing           P1 to P3 and P7, moving pixels is moving the first layer; P4, shared weights
path_norm, penalty         P5, P9, P11, P12, two layers of ReLU and where SGD ends; P6, what regularisers punish
stability                  P8, where SGD can stay; P10, what a finite step minimises
certificates, smoothing    P13, the angle of a map; P14, what it certifies about similarities; P18, averaged maps
traps, blind               P15 to P17, what the explained number does; P19, P26, what a measure does not see
entropy, kernels           P20, P22 to P25, softmax rows; P21, P27 to P32, rows that need not sum to one
"""
