const walks = [
 {
  "name": "coffee",
  "credit": "Rachel Michetti, CC0",
  "network": "EfficientNet-Lite0, 1,000 classes of ImageNet",
  "radii": [
   0,
   1,
   2,
   3,
   4,
   6,
   8
  ],
  "pictures": "coffee_pictures.webp",
  "maps": "coffee_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.9247,
      "stay": 0.111
     },
     {
      "class": "espresso",
      "probability": 0.7744,
      "stay": 0.0193
     },
     {
      "class": "espresso",
      "probability": 0.2729,
      "stay": 0.007
     },
     {
      "class": "espresso",
      "probability": 0.4089,
      "stay": 0.007
     },
     {
      "class": "espresso",
      "probability": 0.6215,
      "stay": 0.0058
     },
     {
      "class": "espresso",
      "probability": 0.5339,
      "stay": 0.0048
     }
    ],
    "noise": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.9513,
      "stay": 0.4372
     },
     {
      "class": "espresso",
      "probability": 0.9521,
      "stay": 0.3749
     },
     {
      "class": "espresso",
      "probability": 0.9509,
      "stay": 0.3187
     },
     {
      "class": "espresso",
      "probability": 0.9491,
      "stay": 0.3003
     },
     {
      "class": "espresso",
      "probability": 0.9452,
      "stay": 0.2461
     },
     {
      "class": "espresso",
      "probability": 0.9383,
      "stay": 0.2334
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.8797,
      "stay": 0.1901
     },
     {
      "class": "espresso",
      "probability": 0.7264,
      "stay": 0.0313
     },
     {
      "class": "espresso",
      "probability": 0.5405,
      "stay": 0.0273
     },
     {
      "class": "espresso",
      "probability": 0.5059,
      "stay": 0.0153
     },
     {
      "class": "espresso",
      "probability": 0.5027,
      "stay": 0.0185
     },
     {
      "class": "espresso",
      "probability": 0.2695,
      "stay": 0.0068
     }
    ],
    "noise": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.9513,
      "stay": 0.6012
     },
     {
      "class": "espresso",
      "probability": 0.9521,
      "stay": 0.5606
     },
     {
      "class": "espresso",
      "probability": 0.9509,
      "stay": 0.5171
     },
     {
      "class": "espresso",
      "probability": 0.9491,
      "stay": 0.4934
     },
     {
      "class": "espresso",
      "probability": 0.9452,
      "stay": 0.4344
     },
     {
      "class": "espresso",
      "probability": 0.9383,
      "stay": 0.4247
     }
    ]
   },
   {
    "map": "Grad-CAM",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.0995,
      "stay": 0.0
     },
     {
      "class": "espresso",
      "probability": 0.1959,
      "stay": 0.0
     },
     {
      "class": "espresso",
      "probability": 0.1677,
      "stay": 0.0
     },
     {
      "class": "espresso",
      "probability": 0.4432,
      "stay": 0.0
     },
     {
      "class": "espresso",
      "probability": 0.6479,
      "stay": 0.0
     },
     {
      "class": "espresso",
      "probability": 0.2388,
      "stay": 0.0
     }
    ],
    "noise": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.9513,
      "stay": 0.9578
     },
     {
      "class": "espresso",
      "probability": 0.9521,
      "stay": 0.8665
     },
     {
      "class": "espresso",
      "probability": 0.9509,
      "stay": 0.8075
     },
     {
      "class": "espresso",
      "probability": 0.9491,
      "stay": 0.7531
     },
     {
      "class": "espresso",
      "probability": 0.9452,
      "stay": 0.7467
     },
     {
      "class": "espresso",
      "probability": 0.9383,
      "stay": 0.7206
     }
    ]
   },
   {
    "map": "DeepLIFT",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.8359,
      "stay": 0.3165
     },
     {
      "class": "espresso",
      "probability": 0.302,
      "stay": 0.0759
     },
     {
      "class": "espresso",
      "probability": 0.1393,
      "stay": 0.044
     },
     {
      "class": "espresso",
      "probability": 0.2908,
      "stay": 0.0259
     },
     {
      "class": "espresso",
      "probability": 0.4627,
      "stay": 0.0193
     },
     {
      "class": "espresso",
      "probability": 0.387,
      "stay": 0.0165
     }
    ],
    "noise": [
     {
      "class": "espresso",
      "probability": 0.9398,
      "stay": 1.0
     },
     {
      "class": "espresso",
      "probability": 0.9513,
      "stay": 0.6877
     },
     {
      "class": "espresso",
      "probability": 0.9521,
      "stay": 0.5913
     },
     {
      "class": "espresso",
      "probability": 0.9509,
      "stay": 0.5466
     },
     {
      "class": "espresso",
      "probability": 0.9491,
      "stay": 0.5078
     },
     {
      "class": "espresso",
      "probability": 0.9452,
      "stay": 0.4657
     },
     {
      "class": "espresso",
      "probability": 0.9383,
      "stay": 0.437
     }
    ]
   }
  ]
 },
 {
  "name": "cat",
  "credit": "Stefan van der Walt, CC0",
  "network": "EfficientNet-Lite0, 1,000 classes of ImageNet",
  "radii": [
   0,
   1,
   2,
   3,
   4,
   6,
   8
  ],
  "pictures": "cat_pictures.webp",
  "maps": "cat_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4271,
      "stay": 0.0636
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4608,
      "stay": 0.0239
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4807,
      "stay": 0.0052
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4594,
      "stay": 0.0052
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4488,
      "stay": 0.0082
     },
     {
      "class": "Egyptian cat",
      "probability": 0.2638,
      "stay": 0.0034
     }
    ],
    "noise": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.365,
      "stay": 0.499
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3606,
      "stay": 0.3442
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3559,
      "stay": 0.2812
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3706,
      "stay": 0.2314
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3597,
      "stay": 0.2007
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3229,
      "stay": 0.1913
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4338,
      "stay": 0.0857
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4107,
      "stay": 0.0371
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4687,
      "stay": 0.0132
     },
     {
      "class": "Egyptian cat",
      "probability": 0.7423,
      "stay": 0.0136
     },
     {
      "class": "Egyptian cat",
      "probability": 0.2972,
      "stay": 0.0094
     },
     {
      "class": "Egyptian cat",
      "probability": 0.6869,
      "stay": 0.0038
     }
    ],
    "noise": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.365,
      "stay": 0.4974
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3606,
      "stay": 0.3507
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3559,
      "stay": 0.2894
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3706,
      "stay": 0.2423
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3597,
      "stay": 0.2182
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3229,
      "stay": 0.2033
     }
    ]
   },
   {
    "map": "Grad-CAM",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4617,
      "stay": 0.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.6017,
      "stay": 0.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4478,
      "stay": 0.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4379,
      "stay": 0.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4269,
      "stay": 0.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3672,
      "stay": 0.0
     }
    ],
    "noise": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.365,
      "stay": 0.9197
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3606,
      "stay": 0.8107
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3559,
      "stay": 0.7098
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3706,
      "stay": 0.6558
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3597,
      "stay": 0.611
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3229,
      "stay": 0.615
     }
    ]
   },
   {
    "map": "DeepLIFT",
    "leading": 5018,
    "places": "pixels",
    "attack": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4231,
      "stay": 0.3063
     },
     {
      "class": "Egyptian cat",
      "probability": 0.4671,
      "stay": 0.1353
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3983,
      "stay": 0.0717
     },
     {
      "class": "Egyptian cat",
      "probability": 0.5335,
      "stay": 0.0458
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3604,
      "stay": 0.0289
     },
     {
      "class": "Egyptian cat",
      "probability": 0.6254,
      "stay": 0.0205
     }
    ],
    "noise": [
     {
      "class": "Egyptian cat",
      "probability": 0.3846,
      "stay": 1.0
     },
     {
      "class": "Egyptian cat",
      "probability": 0.365,
      "stay": 0.7158
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3606,
      "stay": 0.5733
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3559,
      "stay": 0.5072
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3706,
      "stay": 0.4498
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3597,
      "stay": 0.3852
     },
     {
      "class": "Egyptian cat",
      "probability": 0.3229,
      "stay": 0.3368
     }
    ]
   }
  ]
 },
 {
  "name": "ankle boot",
  "credit": "Fashion-MNIST, Zalando SE, MIT",
  "network": "the small convolutional network of notebook 01, 10 classes of Fashion-MNIST",
  "radii": [
   0,
   1,
   2,
   4,
   6,
   8,
   12,
   16
  ],
  "pictures": "ankle_boot_pictures.webp",
  "maps": "ankle_boot_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9942,
      "stay": 0.8718
     },
     {
      "class": "ankle boot",
      "probability": 0.9939,
      "stay": 0.7949
     },
     {
      "class": "ankle boot",
      "probability": 0.9921,
      "stay": 0.6538
     },
     {
      "class": "ankle boot",
      "probability": 0.9813,
      "stay": 0.5385
     },
     {
      "class": "ankle boot",
      "probability": 0.9808,
      "stay": 0.4103
     },
     {
      "class": "ankle boot",
      "probability": 0.999,
      "stay": 0.2821
     },
     {
      "class": "ankle boot",
      "probability": 0.9646,
      "stay": 0.1923
     }
    ],
    "noise": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9872
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9744
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9487
     },
     {
      "class": "ankle boot",
      "probability": 0.9943,
      "stay": 0.9487
     },
     {
      "class": "ankle boot",
      "probability": 0.994,
      "stay": 0.9359
     },
     {
      "class": "ankle boot",
      "probability": 0.9933,
      "stay": 0.9231
     },
     {
      "class": "ankle boot",
      "probability": 0.9924,
      "stay": 0.8718
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9942,
      "stay": 0.9359
     },
     {
      "class": "ankle boot",
      "probability": 0.9952,
      "stay": 0.859
     },
     {
      "class": "ankle boot",
      "probability": 0.9955,
      "stay": 0.7821
     },
     {
      "class": "ankle boot",
      "probability": 0.9959,
      "stay": 0.6923
     },
     {
      "class": "ankle boot",
      "probability": 0.9962,
      "stay": 0.5897
     },
     {
      "class": "ankle boot",
      "probability": 0.9896,
      "stay": 0.4359
     },
     {
      "class": "ankle boot",
      "probability": 0.9641,
      "stay": 0.359
     }
    ],
    "noise": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9744
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9744
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9744
     },
     {
      "class": "ankle boot",
      "probability": 0.9943,
      "stay": 0.9487
     },
     {
      "class": "ankle boot",
      "probability": 0.994,
      "stay": 0.9359
     },
     {
      "class": "ankle boot",
      "probability": 0.9933,
      "stay": 0.859
     },
     {
      "class": "ankle boot",
      "probability": 0.9924,
      "stay": 0.8205
     }
    ]
   },
   {
    "map": "integrated gradients",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9948,
      "stay": 0.9231
     },
     {
      "class": "ankle boot",
      "probability": 0.9936,
      "stay": 0.8846
     },
     {
      "class": "ankle boot",
      "probability": 0.9895,
      "stay": 0.8205
     },
     {
      "class": "ankle boot",
      "probability": 0.9938,
      "stay": 0.7692
     },
     {
      "class": "ankle boot",
      "probability": 0.9864,
      "stay": 0.6923
     },
     {
      "class": "ankle boot",
      "probability": 0.9969,
      "stay": 0.5897
     },
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 0.5256
     }
    ],
    "noise": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9872
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9872
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9487
     },
     {
      "class": "ankle boot",
      "probability": 0.9943,
      "stay": 0.9359
     },
     {
      "class": "ankle boot",
      "probability": 0.994,
      "stay": 0.9103
     },
     {
      "class": "ankle boot",
      "probability": 0.9933,
      "stay": 0.8974
     },
     {
      "class": "ankle boot",
      "probability": 0.9924,
      "stay": 0.8974
     }
    ]
   },
   {
    "map": "SmoothGrad",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9931,
      "stay": 0.9615
     },
     {
      "class": "ankle boot",
      "probability": 0.9913,
      "stay": 0.9231
     },
     {
      "class": "ankle boot",
      "probability": 0.9838,
      "stay": 0.859
     },
     {
      "class": "ankle boot",
      "probability": 0.9568,
      "stay": 0.8205
     },
     {
      "class": "ankle boot",
      "probability": 0.9906,
      "stay": 0.6667
     },
     {
      "class": "ankle boot",
      "probability": 0.9836,
      "stay": 0.5
     },
     {
      "class": "ankle boot",
      "probability": 0.9626,
      "stay": 0.3462
     }
    ],
    "noise": [
     {
      "class": "ankle boot",
      "probability": 0.9944,
      "stay": 1.0
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9872
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9872
     },
     {
      "class": "ankle boot",
      "probability": 0.9945,
      "stay": 0.9487
     },
     {
      "class": "ankle boot",
      "probability": 0.9943,
      "stay": 0.9359
     },
     {
      "class": "ankle boot",
      "probability": 0.994,
      "stay": 0.9103
     },
     {
      "class": "ankle boot",
      "probability": 0.9933,
      "stay": 0.8846
     },
     {
      "class": "ankle boot",
      "probability": 0.9924,
      "stay": 0.8718
     }
    ]
   }
  ]
 },
 {
  "name": "pullover",
  "credit": "Fashion-MNIST, Zalando SE, MIT",
  "network": "the small convolutional network of notebook 01, 10 classes of Fashion-MNIST",
  "radii": [
   0,
   1,
   2,
   4,
   6,
   8,
   12,
   16
  ],
  "pictures": "pullover_pictures.webp",
  "maps": "pullover_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9103
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.859
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.7564
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.6538
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.5641
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.4615
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.359
     }
    ],
    "noise": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9615
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8846
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8462
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8974
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8077
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.7179
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.6282
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.5256
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.4487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.3077
     }
    ],
    "noise": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.859
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8077
     }
    ]
   },
   {
    "map": "integrated gradients",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8718
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.7564
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.6923
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.6538
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.5897
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.5
     }
    ],
    "noise": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8974
     }
    ]
   },
   {
    "map": "SmoothGrad",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9615
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8846
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8205
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.7692
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.6154
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.5256
     }
    ],
    "noise": [
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9615
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.9103
     },
     {
      "class": "pullover",
      "probability": 1.0,
      "stay": 0.8846
     }
    ]
   }
  ]
 },
 {
  "name": "trouser",
  "credit": "Fashion-MNIST, Zalando SE, MIT",
  "network": "the small convolutional network of notebook 01, 10 classes of Fashion-MNIST",
  "radii": [
   0,
   1,
   2,
   4,
   6,
   8,
   12,
   16
  ],
  "pictures": "trouser_pictures.webp",
  "maps": "trouser_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.8846
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7949
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7179
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.6667
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.5769
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.5
     }
    ],
    "noise": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9103
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.859
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7692
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.6923
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.6026
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.5128
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.4359
     }
    ],
    "noise": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9615
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9103
     }
    ]
   },
   {
    "map": "integrated gradients",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.8974
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.8333
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7821
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7179
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.641
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.5385
     }
    ],
    "noise": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9615
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9103
     }
    ]
   },
   {
    "map": "SmoothGrad",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.8846
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.859
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.8205
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.7179
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.6282
     }
    ],
    "noise": [
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 1.0
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9872
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9744
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9487
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9359
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9231
     },
     {
      "class": "trouser",
      "probability": 1.0,
      "stay": 0.9103
     }
    ]
   }
  ]
 },
 {
  "name": "coat",
  "credit": "Fashion-MNIST, Zalando SE, MIT",
  "network": "the small convolutional network of notebook 01, 10 classes of Fashion-MNIST",
  "radii": [
   0,
   1,
   2,
   4,
   6,
   8,
   12,
   16
  ],
  "pictures": "coat_pictures.webp",
  "maps": "coat_maps.webp",
  "walks": [
   {
    "map": "saliency",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.859
     },
     {
      "class": "coat",
      "probability": 0.9975,
      "stay": 0.7564
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.6282
     },
     {
      "class": "coat",
      "probability": 0.9986,
      "stay": 0.5
     },
     {
      "class": "coat",
      "probability": 0.9979,
      "stay": 0.3846
     },
     {
      "class": "coat",
      "probability": 0.9981,
      "stay": 0.2692
     },
     {
      "class": "coat",
      "probability": 0.9908,
      "stay": 0.2179
     }
    ],
    "noise": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.9744
     },
     {
      "class": "coat",
      "probability": 0.9983,
      "stay": 0.9744
     },
     {
      "class": "coat",
      "probability": 0.9981,
      "stay": 0.9231
     },
     {
      "class": "coat",
      "probability": 0.9978,
      "stay": 0.9231
     },
     {
      "class": "coat",
      "probability": 0.9974,
      "stay": 0.9103
     },
     {
      "class": "coat",
      "probability": 0.9961,
      "stay": 0.8333
     },
     {
      "class": "coat",
      "probability": 0.9937,
      "stay": 0.7821
     }
    ]
   },
   {
    "map": "input × gradient",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.8718
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.7949
     },
     {
      "class": "coat",
      "probability": 0.9975,
      "stay": 0.6538
     },
     {
      "class": "coat",
      "probability": 0.9986,
      "stay": 0.5385
     },
     {
      "class": "coat",
      "probability": 0.9992,
      "stay": 0.4615
     },
     {
      "class": "coat",
      "probability": 0.9969,
      "stay": 0.359
     },
     {
      "class": "coat",
      "probability": 0.9887,
      "stay": 0.2308
     }
    ],
    "noise": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.9872
     },
     {
      "class": "coat",
      "probability": 0.9983,
      "stay": 0.9744
     },
     {
      "class": "coat",
      "probability": 0.9981,
      "stay": 0.9487
     },
     {
      "class": "coat",
      "probability": 0.9978,
      "stay": 0.8974
     },
     {
      "class": "coat",
      "probability": 0.9974,
      "stay": 0.8462
     },
     {
      "class": "coat",
      "probability": 0.9961,
      "stay": 0.8205
     },
     {
      "class": "coat",
      "probability": 0.9937,
      "stay": 0.7821
     }
    ]
   },
   {
    "map": "integrated gradients",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9988,
      "stay": 0.8846
     },
     {
      "class": "coat",
      "probability": 0.9986,
      "stay": 0.8462
     },
     {
      "class": "coat",
      "probability": 0.9988,
      "stay": 0.7564
     },
     {
      "class": "coat",
      "probability": 0.9991,
      "stay": 0.6538
     },
     {
      "class": "coat",
      "probability": 0.9997,
      "stay": 0.5641
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.4359
     },
     {
      "class": "coat",
      "probability": 0.9962,
      "stay": 0.3462
     }
    ],
    "noise": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.9872
     },
     {
      "class": "coat",
      "probability": 0.9983,
      "stay": 0.9744
     },
     {
      "class": "coat",
      "probability": 0.9981,
      "stay": 0.9487
     },
     {
      "class": "coat",
      "probability": 0.9978,
      "stay": 0.9487
     },
     {
      "class": "coat",
      "probability": 0.9974,
      "stay": 0.9103
     },
     {
      "class": "coat",
      "probability": 0.9961,
      "stay": 0.859
     },
     {
      "class": "coat",
      "probability": 0.9937,
      "stay": 0.8077
     }
    ]
   },
   {
    "map": "SmoothGrad",
    "leading": 78,
    "places": "pixels",
    "attack": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9988,
      "stay": 0.9487
     },
     {
      "class": "coat",
      "probability": 0.9991,
      "stay": 0.8974
     },
     {
      "class": "coat",
      "probability": 0.999,
      "stay": 0.7949
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.7051
     },
     {
      "class": "coat",
      "probability": 0.9983,
      "stay": 0.641
     },
     {
      "class": "coat",
      "probability": 0.9963,
      "stay": 0.5385
     },
     {
      "class": "coat",
      "probability": 0.3443,
      "stay": 0.3718
     }
    ],
    "noise": [
     {
      "class": "coat",
      "probability": 0.9985,
      "stay": 1.0
     },
     {
      "class": "coat",
      "probability": 0.9984,
      "stay": 0.9872
     },
     {
      "class": "coat",
      "probability": 0.9983,
      "stay": 0.9872
     },
     {
      "class": "coat",
      "probability": 0.9981,
      "stay": 0.9615
     },
     {
      "class": "coat",
      "probability": 0.9978,
      "stay": 0.9231
     },
     {
      "class": "coat",
      "probability": 0.9974,
      "stay": 0.8974
     },
     {
      "class": "coat",
      "probability": 0.9961,
      "stay": 0.8462
     },
     {
      "class": "coat",
      "probability": 0.9937,
      "stay": 0.8077
     }
    ]
   }
  ]
 }
];
