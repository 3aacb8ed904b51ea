# Puts the libraries of the Python environment that we build with beside ours, as links, so that programs run at once.
# A deployment installs ONNX Runtime and onnxruntime-extensions by its own means instead.

ultramem_python_package(onnxruntime package)
file(GLOB ort_library ${package}/capi/libonnxruntime.so.*)
if(package AND ort_library)
  install(CODE "file(CREATE_LINK ${ort_library} \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/libonnxruntime.so.1\"
                     SYMBOLIC)" COMPONENT runtime)
else()
  message(STATUS "onnxruntime is not in this Python environment: programs need ULTRAMEM_ONNXRUNTIME")
endif()

# The wheel of onnxruntime-extensions holds a Python module, whose C functions never call Python: but the loader wants
# Python's symbols to be somewhere. libortextensions.so gives each an address and brings the module along.
ultramem_python_package(onnxruntime_extensions package)
file(GLOB module ${package}/_extensions_pydll*.so)
if(package AND module)
  get_filename_component(folder ${module} DIRECTORY)
  get_filename_component(file ${module} NAME)
  execute_process(COMMAND ${CMAKE_NM} -D --undefined-only ${module} OUTPUT_VARIABLE symbols)
  string(REGEX MATCHALL " U _?Py[A-Za-z0-9_]+" symbols "${symbols}")
  set(source "#include <stdlib.h>\nvoid ultramem_no_python(void) { abort(); }\n")
  foreach(symbol ${symbols})
    string(REPLACE " U " "" symbol ${symbol})
    string(APPEND source "void ${symbol}(void) __attribute__((alias(\"ultramem_no_python\")));\n")
  endforeach()
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/no_python.c CONTENT "${source}" @ONLY)
  enable_language(C)
  add_library(ortextensions SHARED ${CMAKE_CURRENT_BINARY_DIR}/no_python.c)
  target_link_options(ortextensions PRIVATE LINKER:--no-as-needed -L${folder} -l:${file}
                                            LINKER:--unresolved-symbols=ignore-in-shared-libs)
  set_target_properties(ortextensions PROPERTIES C_VISIBILITY_PRESET default INSTALL_RPATH "$ORIGIN")
  install(TARGETS ortextensions LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime)
  install(CODE "file(CREATE_LINK ${module} \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/${file}\" SYMBOLIC)"
          COMPONENT runtime)
else()
  message(STATUS "onnxruntime-extensions is not in this Python environment: programs take token ids unless "
                 "ULTRAMEM_TOKENIZER names libortextensions.so")
endif()
