import{b as a,c as b,d as c,e as d}from"./chunk-UTDMANGL.js";import"./chunk-OOJM4CTU.js";export{a as curlOf,c as python,b as pythonOf,d as readExport};
