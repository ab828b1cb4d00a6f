#pragma once
#include "emulate.h"
