# Finds CUDA's compiler where ULTRAMEM_CUDA allows it, and says what is missing where it does not suffice.
# Sets ULTRAMEM_HAS_CUDA.
set(ULTRAMEM_HAS_CUDA OFF)
set(oldest_nvcc 12.8)  # the first that knows sm_100 and sm_120

# Reports a missing part: an error where the user asked for it (ON), a line where it is looked for (AUTO).
function(ultramem_missing option text)
  if("${${option}}" STREQUAL "ON")
    message(FATAL_ERROR "${option} is ON, but ${text}")
  endif()
  message(STATUS "${option}: not built, for ${text}")
endfunction()

if(NOT ULTRAMEM_CUDA STREQUAL "OFF")
  find_program(ULTRAMEM_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT ULTRAMEM_NVCC)
    ultramem_missing(ULTRAMEM_CUDA "nvcc was not found: install the CUDA toolkit ${oldest_nvcc} or newer, or set CUDA_HOME")
  else()
    execute_process(COMMAND ${ULTRAMEM_NVCC} --version OUTPUT_VARIABLE nvcc_text)
    string(REGEX MATCH "release ([0-9.]+)" _ "${nvcc_text}")
    if(CMAKE_MATCH_1 VERSION_LESS oldest_nvcc)
      ultramem_missing(ULTRAMEM_CUDA "${ULTRAMEM_NVCC} is ${CMAKE_MATCH_1}: CUDA ${oldest_nvcc} or newer is needed")
    else()
      set(CMAKE_CUDA_COMPILER ${ULTRAMEM_NVCC})
      if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100-real 120)  # PTX of 120 for what comes after
      endif()
      enable_language(CUDA)
      find_package(CUDAToolkit REQUIRED)
      find_package(Python COMPONENTS Interpreter REQUIRED)
      set(CMAKE_CUDA_STANDARD 17)
      set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
      set(ULTRAMEM_HAS_CUDA ON)
    endif()
  endif()
endif()
