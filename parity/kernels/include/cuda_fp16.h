#pragma once
#include "cuda_types.h"
